"""Where images come from (`sources`), how a file becomes pixels (`images`), who is in which split (`splits`).

`pipeline` brings pixels to the model, `demo` draws the generated faces, `hashes` finds near-duplicates and
`properties` describes files.
"""
