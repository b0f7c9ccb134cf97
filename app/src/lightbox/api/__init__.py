"""The API: predictions and the cases they are kept in."""
