"""What pruning did to a model, for others to read: the same data as a page, as Markdown, as JSON and as a table."""
