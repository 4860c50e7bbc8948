"""How fast our programs are beside other ways of doing the same, on one machine."""
