"""Files: written whole or not at all, checked, and read with care when strangers wrote them."""
