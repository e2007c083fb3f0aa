"""How fast our services are, beside others of their kind."""
