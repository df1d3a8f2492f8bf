"""One module for each thing that st3fx does for a user, from files and specs to a result."""
