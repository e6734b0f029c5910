"""OpenAI's API: requests, routes, the text of sampled tokens, tools, grammars and limits."""
