"""One module per API service; handlers know no transport."""
