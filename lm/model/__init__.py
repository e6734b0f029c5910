"""The decoder, module by module. A parameter's shape, initializer and logical axes stand where it is made."""
