"""Tests against a real server, migrated by yoyo."""
