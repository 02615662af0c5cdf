"""The Flask, gunicorn and gevent half that queen, hive and worker share."""
