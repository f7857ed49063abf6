"""The data set's files: manifest, index, and the JPEG structure that restart markers give; docs/format.md."""
