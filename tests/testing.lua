
-- Appended to the library by tests only: a clock that can be set, and a look at the derived keys.

redis.register_function('qs_clock_@', function(_, args)
  clock_offset = tonumber(args[1])
  return 'ok'
end)

redis.register_function('qs_key_@', function(keys, args)
  return key(keys[1], args[1], args[2])
end)

local frozen
local running_now = now

-- Time stands still at this moment (µs); '' lets it run again.
now = function()
  return frozen or running_now()
end

local function freeze(_, args)
  frozen = tonumber(args[1])
  return 'ok'
end

redis.register_function({ function_name = 'qs_freeze_@', callback = freeze, flags = { 'allow-oom' } })
