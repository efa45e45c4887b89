"""`python -m fedsr_monai` is `fedsr`."""

from __future__ import annotations

import sys

from fedsr_monai.cli import main

sys.exit(main())
