"""Results: stored as JSON, told in tables, charted on a page."""
