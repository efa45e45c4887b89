"""Site folders: the contract of `site.json`, and checking, reading and writing folders that keep it; nothing that makes scans."""
