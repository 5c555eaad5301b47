"""Tools for working on this project; nothing here is installed."""
