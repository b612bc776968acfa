"""The kinds of sources that items come from, one file per kind."""
