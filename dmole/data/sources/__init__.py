"""The kinds of places that items come from, one file a kind."""
