"""What crosses the wire: errors, schemas, events, settings, client and logs; no Flask, no daemon."""
