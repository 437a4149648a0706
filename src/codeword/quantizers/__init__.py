"""One quantizer a file, found by its catalog name."""
