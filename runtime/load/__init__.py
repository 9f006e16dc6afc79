"""The load generator: plays a scenario's trace against a live server and records what came back.

``payloads`` (files to send), ``wire`` (KServe v2 messages), ``generator`` (the schedule), ``run`` (all of it, in one
call). No server lives here.
"""
