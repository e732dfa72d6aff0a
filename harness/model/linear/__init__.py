"""The linear reader: a convex model in place of the LLM, which scores each visual token for each expression."""
