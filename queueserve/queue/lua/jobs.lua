-- The ends of a job, and the way from a lost worker to the next one.

-- The end of a job that `api` reads and that is nowhere in the queue. `result` is what a late reader may still
-- fetch: JSON, or ''. `keep_ms`: for how long.
local function close_job(root, id, api, state, result, keep_ms)
  local job = key(root, 'job', id)
  redis.pcall('SREM', key(root, 'by_api', api), id)
  redis.call('ZREM', key(root, 'due'), id)
  redis.call('HSET', job, 'state', state, 'result', result, 'body', '', 'resume', '')
  redis.call('PEXPIRE', job, keep_ms or RESULT_MS)
end

-- The end of a job, wherever it is.
local function end_job(root, id, state, result)
  local fields = redis.call('HMGET', key(root, 'job', id), 'tenant', 'api', 'state')
  if fields[1] and fields[3] ~= 'running' then
    dequeue(root, id, fields[1])
  end
  close_job(root, id, fields[2] or '', state, result)
end

local TIME_OVER = 'The request did not finish within its time limit.'

local function failure(code, message)
  return '{"error":' .. cjson.encode({ code = code, message = message }) .. '}'
end

local function result_of_stopped(why)
  return why == 'expired' and failure('request_timeout', TIME_OVER) or ''
end

-- The end of a job that was asked to stop. `why`: cancelled, or expired at its total deadline.
local function end_stopped(root, id, why)
  end_job(root, id, why, result_of_stopped(why))
end

local function fail_job(root, id, state, code, message)
  local fields = redis.call('HMGET', key(root, 'job', id), 'api', 'epoch')
  end_job(root, id, state, failure(code, message))
  publish_failed(root, fields[1], id, tonumber(fields[2]), code, message)
end

-- The reader is gone, and another one may come until the grace time is over. Said twice is said once.
local function detach(root, id, grace_over)
  if redis.call('HSETNX', key(root, 'job', id), 'detached', grace_over) == 1 then
    redis.call('ZADD', key(root, 'due'), 'LT', grace_over, id)
  end
end

-- Ask the worker to stop a job. The lease stays until the worker's `finish` (or its death) frees the slot;
-- the mark in the lease repeats the request with every heartbeat.
local function cancel_running(root, id, worker, epoch, why)
  redis.call('HSET', key(root, 'job', id), 'cancel', why)
  redis.call('HSET', key(root, 'lease', worker), id, epoch .. ' cancel')
  redis.call('PUBLISH', key(root, 'control', worker), 'cancel ' .. epoch .. ' ' .. id)
end

-- The worker of a running job is gone. The reader alone knows what it has received, so the job is parked
-- under a new epoch until the reader resumes it; a job without a reader ends.
-- `charged`: a crash counts as an attempt, a drain does not. The last attempt runs alone (see alone.lua), so
-- that the job which fails here is the one that ended its worker.
local function orphan(root, id, time, charged)
  local job = key(root, 'job', id)
  local fields = redis.call('HMGET', job, 'state', 'epoch', 'api', 'attempts', 'max_attempts', 'cancel',
    'orphan_us', 'detached', 'end_by', 'worker', 'crashed')
  if fields[1] ~= 'running' then
    return
  end
  if charged then
    redis.call('HSET', job, 'crashed', (fields[11] and fields[11] .. ' ' or '') .. fields[10])
  else
    redis.call('HINCRBY', job, 'attempts', -1)
  end
  local reader = redis.call('ZSCORE', key(root, 'apis'), fields[3])
  if fields[6] then
    end_stopped(root, id, fields[6])
  elseif not reader and not fields[8] then
    end_job(root, id, 'cancelled', '')
  elseif charged and tonumber(fields[4]) >= tonumber(fields[5]) then
    local reason = string.format('The job ended %s workers, the last one alone; it is not tried again.', fields[4])
    bury(root, id, time, reason)
    fail_job(root, id, 'failed', 'worker_crashed', reason)
  else
    local epoch = next_epoch(root, tonumber(fields[2]), time)
    redis.call('HSET', job, 'state', 'orphaned', 'epoch', epoch, 'worker', '', 'notified', 1)
    look_at(root, id, time + tonumber(fields[7]), fields[9], fields[8])
    publish_orphaned(root, fields[3], id, epoch)
  end
end

-- Take a worker out of the pool and give its jobs back.
local function remove_worker(root, worker, time, charged)
  redis.call('ZREM', key(root, 'alive'), worker)
  redis.call('ZREM', key(root, 'free'), worker)
  redis.call('HDEL', key(root, 'reserved'), worker)
  local lease = redis.pcall('HKEYS', key(root, 'lease', worker))
  lease = lease.err and {} or lease -- somebody else's key tells of no job
  redis.call('DEL', key(root, 'lease', worker), key(root, 'inbox', worker), key(root, 'worker', worker))
  for _, id in ipairs(lease) do
    if not attempt(root, id, orphan, root, id, time, charged) then
      forget_job(root, id)
    end
  end
  return #lease
end
