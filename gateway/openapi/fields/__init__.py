"""What structs cannot say of requests: meaning, ranges, defaults, and the forms of what is checked by hand."""
