"""What may be wrong with a row: one file a kind of filter, and the table of them."""
