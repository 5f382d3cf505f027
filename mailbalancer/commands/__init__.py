"""What an administrator types, a module per kind of work; `cli` puts them together."""
