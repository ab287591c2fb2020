"""What is rendered: requests, tables, a checkpoint's graph, the store. Never imports ray."""
