"""Images and texts become scores: the model, the safety rules, heads, and known harm."""
