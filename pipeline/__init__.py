"""What is rendered: requests, tables, the graph of a checkpoint's blocks, the store. Never imports ray."""
