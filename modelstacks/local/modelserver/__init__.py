"""A model server on loopback that speaks as vLLM or TGI does: for tests, drills and the laptop."""
