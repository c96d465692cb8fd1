-- Dead letters: jobs that ended their workers, the last one while they ran alone. Kept for operators, for some
-- days and up to a number; their readers have had an error.
--
--   dead      ZSET  job -> when it was given up (µs)
--   dead:J    HASH  reason, attempts, workers, tenant, submitted, died, body, body_bytes

local DEAD_MS = 7 * DAY_MS
local DEAD_MOST = 100
local DEAD_BODY = 262144 -- bytes; a longer body is left out

local function bury(root, id, time, reason)
  local dead, letter = key(root, 'dead'), key(root, 'dead', id)
  local fields = redis.call('HMGET', key(root, 'job', id), 'attempts', 'crashed', 'tenant', 'submitted', 'body')
  local body = fields[5] or ''
  redis.call('HSET', letter, 'reason', reason, 'attempts', fields[1], 'workers', fields[2] or '',
    'tenant', fields[3], 'submitted', fields[4], 'died', time, 'body_bytes', #body,
    'body', #body <= DEAD_BODY and body or '')
  redis.call('PEXPIRE', letter, DEAD_MS)
  redis.call('ZADD', dead, time, id)
  redis.call('PEXPIRE', dead, DEAD_MS)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', time - DEAD_MS * 1000)
  for _, old in ipairs(redis.call('ZRANGE', dead, 0, -DEAD_MOST - 1)) do
    redis.call('DEL', key(root, 'dead', old))
    redis.call('ZREM', dead, old)
  end
end
