"""What a service publishes about itself: an OpenAPI document, llms.txt and a page for people.

All of it is made from the gate's own table of routes when the service starts, so that it states
the prices that the challenges demand.
"""
