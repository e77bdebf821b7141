"""The services that are not packages of their own: `tracking`."""
