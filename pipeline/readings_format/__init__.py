"""Decoders of the readings topic: streamgru's own form, other people's JSON, and formats with a schema registry."""
