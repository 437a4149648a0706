"""Policy that more than one quantizer needs: each piece exists once here and is shared, never inherited."""
