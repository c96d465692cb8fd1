-- Put into the library of a cluster under test, before its functions are registered: every step of every
-- job goes into one stream, in the transaction that makes it. What the functions believe is not asked;
-- the checks compare these lines with each other.

local function note(...)
  redis.call('XADD', 'chaos:audit', '*', 'e', cjson.encode({ ... }))
end

local plain_enqueue, plain_assign = enqueue, assign
local plain_close_job, plain_finish, plain_orphan = close_job, finish, orphan

enqueue = function(root, id, tenant, rank)
  if redis.call('HGET', key(root, 'job', id), 'epoch') == '0' then
    note('submit', id)
  end
  return plain_enqueue(root, id, tenant, rank)
end

-- `by`: what brought the job here this time. One that has not waited is not written yet.
assign = function(root, id, job, class, tag, seat, time, ...)
  local before = redis.call('HMGET', key(root, 'job', id), 'epoch', 'resumed')
  if not before[1] then
    note('submit', id)
  end
  local epoch, given = plain_assign(root, id, job, class, tag, seat, time, ...)
  local first = not before[1] or before[1] == '0'
  local by = first and 'submit' or before[1] == before[2] and 'resume' or 'nobody'
  note('dispatch', id, redis.call('HGET', key(root, 'job', id), 'epoch'), seat.worker, by)
  return epoch, given
end

close_job = function(root, id, api, state, ...)
  local fields = redis.call('HMGET', key(root, 'job', id), 'state', 'epoch', 'worker')
  note('end', id, state, fields[1], fields[2], fields[3])
  return plain_close_job(root, id, api, state, ...)
end

finish = function(keys, args)
  local verdict = plain_finish(keys, args)
  note('finish', args[2], verdict, args[3], args[1], args[4])
  return verdict
end

orphan = function(root, id, time, charged)
  local before = redis.call('HGET', key(root, 'job', id), 'state')
  plain_orphan(root, id, time, charged)
  if before == 'running' then
    note('orphan', id, redis.call('HGET', key(root, 'job', id), 'epoch'), charged and true or false)
  end
end
