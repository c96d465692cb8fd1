-- Keys, time, and the values that must not lose digits. Every function gets one key, the pool's root
-- `qs:{pool}`; what lies below it is derived here only, and tested equal to keys.py.
--
--   state     HASH  V:<class> virtual time of fair queueing, epoch, turn, seen, best, best_at,
--                   rate, rated
--   fair      HASH  last:<class>:<tenant>, tag:<class>:<tenant>
--   waiting   HASH  tenant -> its jobs in the queue
--   queue     ZSET  job -> rank
--   alive     ZSET  worker -> expiry (µs)          the truth about who lives
--   free      ZSET  worker -> load                 only workers that may take a job
--   alone     ZSET  job -> rank                    jobs that must run alone, see alone.lua
--   reserved  HASH  worker -> such a job, or ''
--   dead      ZSET  job -> when (µs)               dead letters, see dead.lua; dead:J HASH
--   due       ZSET  job -> when the reaper looks at it (µs)
--   apis      ZSET  API server -> expiry (µs)
--   by_api:A  SET   open jobs of API server A
--   worker:W  HASH  registration, with the TTL people watch
--   lease:W   HASH  job -> "epoch" or "epoch cancel"   the truth about assignment
--   inbox:W   LIST  "epoch job", lines api, body   only a hint that wakes the worker
--   job:J     HASH  state queued|running|orphaned|done|failed|cancelled|expired, epoch, …

local function key(root, part, id)
  if id then
    return root .. ':' .. part .. ':' .. id
  end
  return root .. ':' .. part
end

local function reply_channel(root, api)
  return string.match(root, '^(.-){') .. 'reply:' .. api
end

-- Integers above 2^47 lose digits in Lua's own conversion to text.
local function int(number)
  return string.format('%.0f', number)
end

local clock_offset = 0 -- µs; nothing in this library changes it, tests append a setter

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2]) + clock_offset
end

local DAY_MS = 86400000

-- A number that somebody else may have written.
local function number(value, default)
  local found = tonumber(value or default)
  return found and math.abs(found) < 2 ^ 53 and found or default
end

-- One job or worker whose keys are not ours must not stop the others: what fails is counted, and given up by
-- the caller. Returns whether it went well.
local function attempt(root, name, work, ...)
  local well, problem = pcall(work, ...)
  if not well then
    local text = type(problem) == 'table' and problem.err or tostring(problem)
    redis.pcall('HINCRBY', key(root, 'state'), 'skipped', 1)
    redis.pcall('HSET', key(root, 'state'), 'skipped_last', name .. ': ' .. string.sub(text, 1, 200))
  end
  return well
end
local RESULT_MS = 120000 -- how long the result of an ended job can be fetched

local FINAL = { done = true, failed = true, cancelled = true, expired = true }

local function publish(root, api, event)
  redis.call('PUBLISH', reply_channel(root, api), '[' .. event .. ']')
end

local function publish_failed(root, api, id, epoch, code, message)
  publish(root, api, string.format('["failed",%s,%s,%s,%s,null]',
    cjson.encode(id), int(epoch), cjson.encode(code), cjson.encode(message)))
end

local function publish_orphaned(root, api, id, epoch)
  publish(root, api, string.format('["orphaned",%s,%s]', cjson.encode(id), int(epoch)))
end
