"""Objects in a bucket as inputs of a stage: `fetch.py` lists them and copies them beside the artifacts."""
