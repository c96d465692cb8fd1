-- qs_reap: end what has run out of time: workers, API servers, jobs. Any process may call it at any time.
--   KEYS root    ARGV timeout_us, api ('' or the calling API server, which this renews), dead ('' or a worker
--                whose process is known to be gone)
--   returns { verdict, wait_us, skipped, last }: ok | gone (the calling API server had expired); when to call
--   again; how often this pool had to skip what was not ours, and what it was the last time

local BATCH = 200
local NOTICES = 4 -- how often a silent reader is told of an orphan before the job fails

local function due_queued(root, id, fields, time)
  if time >= fields.end_by then
    fail_job(root, id, 'expired', 'request_timeout', TIME_OVER)
  elseif time < fields.queue_by then
    look_at(root, id, fields.queue_by, fields.end_by, fields.detached)
  elseif redis.call('ZCARD', key(root, 'alive')) == 0 then
    fail_job(root, id, 'expired', 'no_worker', 'No worker serves this model at the moment.')
  else
    fail_job(root, id, 'expired', 'queue_timeout', 'No slot became free within the queue timeout.')
  end
end

local function due_running(root, id, fields, time, timeout)
  if time < fields.end_by then
    look_at(root, id, fields.end_by, fields.end_by, not fields.cancel and fields.detached)
  elseif fields.cancel then -- asked before, and the worker lives but does not let go
    redis.call('HDEL', key(root, 'lease', fields.worker), id)
    end_stopped(root, id, fields.cancel)
    offer(root, fields.worker, time)
  else
    publish_failed(root, fields.api, id, fields.epoch, 'request_timeout', TIME_OVER)
    cancel_running(root, id, fields.worker, int(fields.epoch), 'expired')
    redis.call('ZADD', key(root, 'due'), time + timeout, id)
  end
end

local function due_orphaned(root, id, fields, time, timeout)
  if time >= fields.end_by then
    fail_job(root, id, 'expired', 'request_timeout', TIME_OVER)
  elseif fields.detached then -- another reader may come
    look_at(root, id, fields.end_by, fields.end_by, fields.detached)
  elseif not redis.call('ZSCORE', key(root, 'apis'), fields.api) then
    end_job(root, id, 'cancelled', '')
  elseif fields.notified < NOTICES then
    redis.call('HINCRBY', key(root, 'job', id), 'notified', 1)
    look_at(root, id, time + timeout, fields.end_by)
    publish_orphaned(root, fields.api, id, fields.epoch)
  else -- its reader may have had the end, and only the finish was lost: 'expired', so that a retry runs anew
    fail_job(root, id, 'expired', 'worker_lost', 'The worker was lost and nobody resumed the job.')
  end
end

local function due_job(root, id, time, timeout)
  local raw = redis.call('HMGET', key(root, 'job', id), 'state', 'epoch', 'api', 'worker', 'queue_by',
    'end_by', 'cancel', 'detached', 'notified')
  local state = raw[1]
  local fields = { epoch = tonumber(raw[2]), api = raw[3], worker = raw[4], queue_by = tonumber(raw[5]),
    end_by = tonumber(raw[6]), cancel = raw[7], detached = raw[8], notified = tonumber(raw[9] or 0) }
  if not state or FINAL[state] or not fields.end_by then
    forget_job(root, id)
  elseif fields.detached and time >= tonumber(fields.detached) and not fields.cancel then
    if state == 'running' then
      cancel_running(root, id, fields.worker, int(fields.epoch), 'cancelled')
      redis.call('ZADD', key(root, 'due'), math.max(fields.end_by, time + timeout), id)
    else
      end_job(root, id, 'cancelled', '')
    end
  elseif state == 'queued' then
    due_queued(root, id, fields, time)
  elseif state == 'running' then
    due_running(root, id, fields, time, timeout)
  else
    due_orphaned(root, id, fields, time, timeout)
  end
end

-- The jobs of an API server that is gone: nobody reads them, so they end, but for those that may wait for
-- a retry.
local function remove_api(root, api, time)
  redis.call('ZREM', key(root, 'apis'), api)
  for _, id in ipairs(redis.call('SMEMBERS', key(root, 'by_api', api))) do
    local fields = redis.call('HMGET', key(root, 'job', id), 'state', 'grace_us', 'worker', 'epoch', 'api')
    if fields[5] == api and tonumber(fields[2] or 0) > 0 then
      detach(root, id, time + tonumber(fields[2]))
    elseif fields[5] == api and fields[1] == 'running' then
      cancel_running(root, id, fields[3], fields[4], 'cancelled')
    elseif fields[5] == api and not FINAL[fields[1]] then
      end_job(root, id, 'cancelled', '')
    end
  end
  redis.call('DEL', key(root, 'by_api', api))
end

local function next_due(root, time, timeout)
  local soonest = time + timeout / 3 -- so that a gap in `seen` means that Redis was away
  for _, set in ipairs({ 'due', 'alive', 'apis' }) do
    local first = redis.call('ZRANGE', key(root, set), 0, 0, 'WITHSCORES')
    soonest = math.min(soonest, tonumber(first[2] or soonest))
  end
  return math.max(0, soonest - time)
end

-- What this empties in time may be left by processes that all ended at once.
local function renew_sets(root)
  for _, set in ipairs({ 'queue', 'waiting', 'fair', 'alone', 'due', 'alive', 'free', 'apis' }) do
    redis.call('PEXPIRE', key(root, set), 7 * DAY_MS)
  end
end

local function reap(keys, args)
  local root, time = keys[1], now()
  local timeout, api, dead = tonumber(args[1]), args[2], args[3]
  local verdict = 'ok'
  touch(root, time, timeout)
  if dead ~= '' and redis.call('ZSCORE', key(root, 'alive'), dead) then
    remove_worker(root, dead, time, true)
  end
  if api ~= '' then
    local expiry = redis.call('ZSCORE', key(root, 'apis'), api)
    if expiry and tonumber(expiry) > time then
      redis.call('ZADD', key(root, 'apis'), time + timeout, api)
    else
      verdict = 'gone'
    end
  end
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', key(root, 'apis'), '-inf', time, 'LIMIT', 0, BATCH)) do
    if not attempt(root, gone, remove_api, root, gone, time) then
      redis.call('DEL', key(root, 'by_api', gone))
    end
  end
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', key(root, 'alive'), '-inf', time, 'LIMIT', 0, BATCH)) do
    remove_worker(root, gone, time, true)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key(root, 'due'), '-inf', time, 'LIMIT', 0, BATCH)) do
    if not attempt(root, id, due_job, root, id, time, timeout) then
      forget_job(root, id)
    end
  end
  dispatch(root, time)
  renew_sets(root)
  local skips = redis.call('HMGET', key(root, 'state'), 'skipped', 'skipped_last')
  return { verdict, next_due(root, time, timeout), number(skips[1], 0), skips[2] or '' }
end
