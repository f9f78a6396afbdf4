"""The documentation site: pages that are made while it is built."""
