"""`fedsr segment`: the inference workflow of a bundle over scans, and what it writes."""
