"""Examples from folders, tables, tars and stored tokens, in an order that survives interruptions."""
