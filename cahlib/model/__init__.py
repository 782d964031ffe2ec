"""Images and texts become scores: CLIP, the safety rules, heads, and lists of known harm."""
