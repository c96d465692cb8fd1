-- qs_finish: a worker ends a job. Accepted once, and only from the worker and the epoch that hold it.
--   KEYS root    ARGV worker, id, epoch, outcome (done|failed|cancelled), result (JSON), true cost (0: unknown),
--        keep_ms: how long the result can be fetched
--   returns accepted | duplicate | stale

local RATE_US = 10 * 1000000 -- the time constant of the measured rate of finished jobs

local function count_rate(root, time)
  local state = key(root, 'state')
  local fields = redis.call('HMGET', state, 'rate', 'rated')
  local gap = time - number(fields[2], time)
  local rate = number(fields[1], 0) * math.exp(-math.max(0, gap) / RATE_US) + 1000000 / RATE_US
  redis.call('HSET', state, 'rate', string.format('%.6f', rate), 'rated', time)
end

local function finish(keys, args)
  local root, time = keys[1], now()
  local worker, id, epoch, outcome, cost = args[1], args[2], args[3], args[4], tonumber(args[6])
  local fields = redis.pcall('HMGET', key(root, 'job', id), 'state', 'epoch', 'worker', 'cancel',
    'class', 'tenant', 'cost', 'weight', 'api')
  if fields.err then -- somebody else's key: there is no such job
    redis.pcall('HDEL', key(root, 'lease', worker), id)
    forget_job(root, id)
    return 'stale'
  end
  if fields[2] ~= epoch or fields[3] ~= worker then
    return 'stale'
  end
  if FINAL[fields[1]] then
    return 'duplicate'
  end
  redis.call('HDEL', key(root, 'lease', worker), id)
  if cost > 0 then
    fair_correct(root, fields[5], fields[6], cost - number(fields[7], cost), number(fields[8], 1))
  end
  if outcome == 'cancelled' then
    end_stopped(root, id, fields[4] or outcome)
  else
    close_job(root, id, fields[9], outcome, args[5], args[7])
  end
  count_rate(root, time)
  dispatch(root, time, offer(root, worker, time))
  return 'accepted'
end

-- qs_cancel: the reader does not want the job any more.
--   KEYS root    ARGV id, api ('' for an operator), reader ('' for whichever reads it there)
--   returns the state after: cancelled, running (the worker was asked), detached (waits its grace time for
--   another reader), moved (somebody else reads it: this came late), or the final state it had
local function cancel(keys, args)
  local root, id, time = keys[1], args[1], now()
  local job = key(root, 'job', id)
  local fields = redis.call('HMGET', job, 'state', 'api', 'grace_us', 'worker', 'epoch', 'reader')
  if not fields[1] then -- not seen yet: what comes later finds this tombstone
    redis.call('HSET', job, 'state', 'cancelled', 'result', '')
    redis.call('PEXPIRE', job, RESULT_MS)
    return 'cancelled'
  end
  if FINAL[fields[1]] then
    return fields[1]
  end
  local reader = args[3] or ''
  if args[2] ~= '' and (fields[2] ~= args[2] or reader ~= '' and fields[6] ~= reader) then
    return 'moved'
  end
  if args[2] ~= '' and tonumber(fields[3]) > 0 then
    detach(root, id, time + tonumber(fields[3]))
    return 'detached'
  end
  if args[2] == '' then
    publish_failed(root, fields[2], id, tonumber(fields[5]), 'cancelled', 'The request was cancelled.')
  end
  if fields[1] == 'running' then
    cancel_running(root, id, fields[4], fields[5], 'cancelled')
    return 'running'
  end
  end_job(root, id, 'cancelled', '')
  return 'cancelled'
end
