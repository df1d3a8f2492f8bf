"""What a person sees: tables, the live panel, words. Nothing here computes or reads files."""
