
-- Appended to the library by tests only: a clock that can be set, and a look at the derived keys.

redis.register_function('qs_clock_@', function(_, args)
  clock_offset = tonumber(args[1])
  return 'ok'
end)

redis.register_function('qs_key_@', function(keys, args)
  return key(keys[1], args[1], args[2])
end)
