"""One verb a file: typed options and one run(); and the handles a person holds."""
