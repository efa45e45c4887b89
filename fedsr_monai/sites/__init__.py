"""Site folders: the contract of `site.json`, checking, reading and writing; nothing here makes scans."""
