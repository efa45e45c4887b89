"""Site folders: the contract of `site.json`, checking, reading and writing; nothing that makes scans."""
