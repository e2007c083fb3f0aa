"""The credit data: the sample, its card (`README.md`), and the loader."""
