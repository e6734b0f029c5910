"""Dumps of whole sites in XML: StackExchange and MediaWiki."""
