"""Images: where they come from (`sources`), their pixels (`images`), and their splits and look-alikes (`splits`).

`demo` draws the demo faces, `properties` describes files and colours; the program prints the data card.
"""
