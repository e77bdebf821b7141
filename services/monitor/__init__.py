"""Watches production: whether what it is asked, the code base, and how well it knows new code have drifted."""
