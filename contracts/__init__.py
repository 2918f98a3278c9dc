"""What crosses a process or a language boundary: messages, records, artifacts, names on the bus.

Imported by everything else and importing nothing but msgspec and the standard library. The JSON Schemas and the
AsyncAPI document under ``contracts/schemas`` are generated from these Structs.
"""
